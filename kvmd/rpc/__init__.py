"""The only place of grpc: from wire to daemon and back."""
