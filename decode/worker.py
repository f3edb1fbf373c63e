"""The decode worker: one process's engine, receiver and requests, put together.

worker = DecodeWorker(spec, DecodeConfig(), metrics)
address = await worker.start()   # model loaded, serving, dialling routers
await worker.drain(timeout_s=30) # no new work; returns when idle or at the deadline
await worker.stop(timeout_s=5)
"""
