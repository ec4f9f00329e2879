"""robosuite's manipulation tasks as robomimic records them: ToolHang, Lift and their like."""
