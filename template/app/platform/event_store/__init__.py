"""Event sourcing: events are stored, and every state is computed from them."""
