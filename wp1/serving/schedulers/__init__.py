"""The schedulers: aggregated, and disaggregated prefill and decode."""
