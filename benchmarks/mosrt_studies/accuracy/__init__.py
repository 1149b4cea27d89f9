"""Studies of accuracy: agreement with listeners, degradations, order of synthesisers."""
