"""What the traced code read: paths from roots, and facts about what is there."""
