"""What a prefill and a decode worker share: the link to routers, the gRPC server's frame, start-up."""
