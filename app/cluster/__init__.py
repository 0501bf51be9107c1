"""What the workers of one server share: one log of control commands, and their statistics."""
