"""The GPU check rehearsed on the CPU: its parts run, and a fault becomes a row that fails the check."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu_check
from gpu_check import Check, attention_kernels, config_for, forwards, inference, measure, report, steps
from reference_step import ReferenceStep
from training_speed import TrainingStep

from indexer.backbone import attention as attention_module
from indexer.backbone.vit import VisionTransformer
from trainer.config import NETWORKS

pytestmark = pytest.mark.slow


@pytest.fixture
def check() -> Check:
    return Check(torch.device("cpu"), tiny=True, limit_s=1e6)


@pytest.mark.long
def test_numbers_are_compared(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "WAYS", {"float32 packed": {}, "bfloat16 packed": {"precision": "bfloat16"}})
    attention_kernels(check)
    forwards(check)
    steps(check)
    assert len(check.rows) == 8 and all(row["ok"] for row in check.rows), check.rows


def test_what_differs_fails(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = attention_module._torch_attention
    monkeypatch.setattr(attention_module, "attention", lambda *given: real(*given) * 1.1)
    attention_kernels(check)
    assert set(report(check)) == {"attention attention() float32", "attention attention() bfloat16"}


def test_both_steps_are_measured_and_a_fault_is_a_row(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    config = config_for(check, "vitl14", 2, precision="bfloat16")
    assert measure(check, "b", "ours", lambda size: TrainingStep(config, check.device), 2, 0.01) > 0
    assert measure(check, "c", "theirs", lambda size: ReferenceStep(config, check.device, torch.bfloat16), 2, 0.01) > 0

    def broken(size: int) -> TrainingStep:
        raise RuntimeError("no kernel")

    assert measure(check, "b", "broken", broken, 2, 0.01) == 0
    assert report(check) == ["broken"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "gpu_check.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["ours", "theirs", "broken"] and "no kernel" in lines[2]["FAILED"]
    assert "1 failed" in capsys.readouterr().out


def test_inference_is_measured(check: Check) -> None:
    torch.manual_seed(0)
    inference(check, VisionTransformer(NETWORKS["tiny"]).eval(), "tiny", 56, 2)
    assert len(check.rows) == 1 and check.rows[0]["images_per_s"] > 0
