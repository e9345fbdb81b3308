"""Known answers -> recall, mAP and calibration errors."""
