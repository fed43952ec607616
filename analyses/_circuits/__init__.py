"""The parts of `analyses.circuits`."""
