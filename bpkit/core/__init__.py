"""What a hand-written backward stands on. Imports nothing of bpkit's above it."""
