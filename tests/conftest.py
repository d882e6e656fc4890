"""Hypothesis profiles. `--hypothesis-profile=nightly` looks for what a few hundred examples do not find."""

from hypothesis import HealthCheck, settings

# No test asserts a duration that a busy machine could miss.
settings.register_profile("test", deadline=None)
settings.register_profile(
    "nightly", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("test")
