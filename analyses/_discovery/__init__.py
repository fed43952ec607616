"""Private parts of `analyses.circuit_discovery`."""
