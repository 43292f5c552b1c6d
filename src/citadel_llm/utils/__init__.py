"""What every part of the package leans on: configuration, logging, the service manager, the host's plan."""
