"""The router: gRPC and OpenAI HTTP front, tokenisation, admission, placement, streaming. Runs no model and no transport."""
