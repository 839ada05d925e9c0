"""What the traced code did to Python and told the outside, and how each compiled call does it again."""
