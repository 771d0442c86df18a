"""What runs inside a worker: one module a kind of model, named by `engine` in model.yaml."""
