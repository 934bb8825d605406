"""Measuring bpkit against torch: interleaved in one process, medians, time and bytes saved."""
