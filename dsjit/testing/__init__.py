"""What tests of your own need: `assert_equivalent`, tensors to feed it, and (`dsjit.testing.strategies`) hypothesis."""

from dsjit.testing.equivalent import assert_equivalent
from dsjit.verification.fill import filled

__all__ = ["assert_equivalent", "filled"]
