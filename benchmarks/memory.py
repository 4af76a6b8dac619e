"Peak memory of one step, in a process of its own (Linux; elsewhere it is not measured)"
import ctypes, gc, multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

ME = Path('/proc/self')
known = sys.platform == 'linux' and os.access(ME/'clear_refs', os.W_OK)

# By default glibc keeps freed memory for later; with these settings a peak counts only memory in use, reproducibly.
# They slow allocation down, so only the measuring processes get them.
GIVE_BACK = dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536', MALLOC_ARENA_MAX='1')

def _kilobytes(name): # A line of /proc/self/status
    lines = (ME/'status').read_text().splitlines()
    return int(next(l for l in lines if l.startswith(name+':')).split()[1])

def _child(make, warm, rows, threads):
    import torch
    torch.set_num_threads(threads)
    step = make()
    step(warm)                                 # a short step: code pages and the optimizer's state count as loaded
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    (ME/'clear_refs').write_text('5')          # the high-water mark starts again from here
    before = _kilobytes('VmRSS')
    step(rows)
    return (_kilobytes('VmHWM') - before)/1024

def _context(): # One server that has the imports; each measurement is a fork of it, before any torch thread exists
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(['contestants', '__main__'])
    return ctx

def peak_mb(
    make,         # Makes the step; must be picklable
    warm,         # A short input
    rows,         # The input that is measured
    threads:int,  # Torch threads
)->float|None:    # MiB above the loaded model; None where it cannot be measured
    "Most memory that one step takes beyond what its model takes"
    if not known: return None
    was = {k: os.environ.get(k) for k in GIVE_BACK}
    os.environ.update(GIVE_BACK)               # read when the server starts
    try:
        with ProcessPoolExecutor(1, mp_context=_context()) as pool:
            return pool.submit(_child, make, warm, rows, threads).result()
    except BrokenProcessPool: return print('  memory: the measuring process was killed (out of memory?)')
    finally:
        for k,v in was.items(): os.environ.pop(k) if v is None else os.environ.update({k:v})
