"""The container's front: the supervisor, the web workers and their HTTP routes. Never imports torch."""
