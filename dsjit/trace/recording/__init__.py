"""The ATen calls of one real run, as a functional Graph."""
