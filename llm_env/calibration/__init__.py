"""How to find a limit: calibration of a cost model, and what a limit would mean."""
