"""Worker processes that time one configuration each."""
