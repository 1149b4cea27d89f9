"""Activation ranges: record activations, choose what each quantiser covers."""
