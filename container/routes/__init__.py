"""The HTTP routes, one module per response format; `container.app` binds them to their paths."""
