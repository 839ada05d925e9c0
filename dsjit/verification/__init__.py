"""Whether a compiled function does what eager does, and what is to blame when it does not: `dsjit.verify`."""
