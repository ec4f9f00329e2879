"""Networks: they know tensors and a spec, never a task, a path or a configuration file."""
