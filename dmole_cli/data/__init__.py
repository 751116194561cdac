"""From a task card to samples."""
