"""Every file that crosses a stage: schema, read, write, check."""
