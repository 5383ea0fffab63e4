"""Address allocation as values and pure rules; what must outlive a restart is kept by poplin.datastore."""
