"""Event sourcing: what happened is what is stored; every state is worked out from it."""
