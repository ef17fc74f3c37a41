"""One list of checks for every server model in the registry, at both ends of the tunnel."""
