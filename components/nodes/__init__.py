"""Jobs on several machines: what components start on a cluster."""
