"""How many examples the state machines of this directory run: a few hundred, or what the profile asks for if more."""

from hypothesis import HealthCheck, settings


def at_least(num_examples: int, num_rules: int) -> settings:
    """Settings of a state machine: examples of up to `num_rules` rules each."""
    return settings(
        max_examples=max(num_examples, settings().max_examples),
        stateful_step_count=num_rules,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
