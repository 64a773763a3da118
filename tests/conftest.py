"""One thread, and property tests that draw the same examples on every machine."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("tests", max_examples=50, derandomize=True, deadline=None)
settings.load_profile("tests")
