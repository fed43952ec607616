"""The parts of `interp.verify`."""
