"""Choice of the cheapest computation for each layer, by measured latency."""
