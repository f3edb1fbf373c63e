"""serval.v1.Serval: the same over gRPC."""
