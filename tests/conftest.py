"""How hard the property tests try: `HYPOTHESIS_PROFILE=thorough pytest`, or `--hypothesis-profile`.

quick       the default: a few dozen examples each, the same ones every time
thorough    some thousand, new ones every time; for the night, or after a change to the records
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick",
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "thorough", settings.get_profile("quick"), max_examples=2000, derandomize=False, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
