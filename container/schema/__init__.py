"""Request bodies as msgspec structs, one module per schema, and the rule that all of them follow (`fields`)."""
