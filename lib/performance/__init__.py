"""Speed and memory against peers from the package index, and how both grow with the work: what notebook 91 and tests/performance run.

One module for each kind of comparison. Peers are imported inside functions: the rest works where one is missing.
"""
