"""Pages: the report of a run or of a comparison as one HTML file without any other."""
