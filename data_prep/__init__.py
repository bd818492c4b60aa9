"""Turn what a hospital or a simulator has into the prepared dataset that `deepcoro` trains on."""
