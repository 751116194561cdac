"""From a task card to samples: cards, formats, synthetic tasks, and the check of a task's data."""
