"""The prefill worker: one process's engine, sender and service, put together.

worker = PrefillWorker(spec, PrefillConfig(), metrics)
address = await worker.start()   # model loaded, serving, dialling routers
await worker.drain(timeout_s=30) # no new work; returns when idle or at the deadline
await worker.stop(timeout_s=5)
"""
