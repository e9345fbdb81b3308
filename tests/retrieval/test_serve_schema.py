"""Requests drawn from the description of the API, and from near it: none is answered by a 500, each as described."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.errors import Unsatisfiable
from serving import running

EXAMPLES = 3  # of each route and kind of data
NOT_DRAWN = {"/api/tasks/events"}  # its answer does not end


@pytest.fixture(scope="module")
def address(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a copy, which may be changed."""
    folder = tmp_path_factory.mktemp("drawn") / "photos"
    shutil.copytree(library, folder)
    with running(folder / ".seenit") as (_, host, port):
        yield f"http://{host}:{port}"


@pytest.mark.long
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_drawn_requests_are_answered_as_described(address: str, mode: str) -> None:
    description = requests.get(f"{address}/openapi.json", timeout=60).json()
    ids = [one["id"] for one in requests.get(f"{address}/api/images", timeout=60).json()["images"]]
    schema = schemathesis.openapi.from_dict(description)
    answered: dict[tuple[str, str], set[int]] = {}
    for path, methods in description["paths"].items():
        for method in methods:
            if path not in NOT_DRAWN:
                answered[method, path] = _draw(schema[path][method.upper()], address, mode, ids)
    assert len(answered) > 20
    assert all(status < 500 for statuses in answered.values() for status in statuses), answered
    if mode == "positive":
        assert sum(bool(statuses & {200, 202, 204}) for statuses in answered.values()) > 12, answered


def _draw(operation: Any, address: str, mode: str, ids: list[str]) -> set[int]:
    """The statuses of the answers to drawn requests of one route."""
    statuses: set[int] = set()
    count = 0

    def once(case: Any) -> None:
        nonlocal count
        count += 1
        if "id" in (case.path_parameters or {}) and count % 2:
            case.path_parameters["id"] = ids[count % len(ids)]
        response = case.call(base_url=address, timeout=60)
        statuses.add(response.status_code)
        assert response.status_code < 500, f"{operation.label}: {case.as_curl_command()}: {response.text}"
        if response.status_code >= 400:
            assert response.json()["schema"] == "seenit.error/1", (operation.label, response.text)
        elif response.headers.get("content-type") == "application/json":
            case.validate_response(response, checks=[schemathesis.checks.response_schema_conformance])

    drawn = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            drawn(given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))(once))()
        except Unsatisfiable:
            assert mode == "negative", "only a route without anything to get wrong has no such requests"
    return statuses
