"The whole check of the project: run by `make test`, by `.ci/run` and by the workflow. The last line counts."
import argparse, contextlib, hashlib, json, multiprocessing, os, re, shutil, signal, subprocess, sys, tempfile, threading, time, tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

root = Path(__file__).resolve().parents[1]
bin_dir = Path(sys.executable).parent              # not resolved: the environment's, not the interpreter's
limit = 1800                                       # seconds that one child may take
at_once = max(2, min(4, os.cpu_count() or 2))      # notebooks tested at a time
running = set()                                    # child processes, killed when the check is interrupted
stopping = threading.Event()                       # set then, so that a killed check is not reported as failed
cell_times = []                                    # (seconds, notebook:cell) of the cells that took over a second

# What every child sees: no network, one thread each so that two notebooks do not fight over the cores, and the
# CPU unless CUDA_VISIBLE_DEVICES names a device, so that the numbers are the same on every machine.
env = {**os.environ, 'PATH': f"{bin_dir}{os.pathsep}{os.environ['PATH']}", 'HF_HUB_OFFLINE': '1', 'WANDB_MODE': 'offline',
       'OMP_NUM_THREADS': '1', 'TOKENIZERS_PARALLELISM': 'false', 'PYTHONUTF8': '1', 'PIP_DISABLE_PIP_VERSION_CHECK': '1',
       'NO_MKDOCS_2_WARNING': '1', 'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES', '')}

class Failed(Exception): "A check that did not pass; the message says what to do"
class Skipped(Exception): "A check that cannot run here; the message says why"

def sh(*cmd, cwd=root):
    "Output of `cmd`; `Failed`, with its output, if it exits with an error or runs longer than `limit` seconds"
    said = f"`{' '.join(map(str, cmd))}`"
    p = subprocess.Popen([str(c) for c in cmd], cwd=cwd, env=env, text=True, errors='replace', start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    running.add(p)
    try: out = p.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        end(p)
        raise Failed(f"{said} did not end within {limit} s:\n{p.communicate()[0]}") from None
    except KeyboardInterrupt:
        end(p)
        raise
    finally: running.discard(p)
    if stopping.is_set(): raise KeyboardInterrupt
    if p.returncode: raise Failed(f"{said} ended with exit code {p.returncode}:\n{out}")
    return out

def end(p):
    "Kills the child `p` and all processes that it started"
    with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)

def tool(name, *args):
    "A developer's module under scripts/dev"
    return sh(sys.executable, '-m', f'scripts.dev.{name}', *args)

# Most of a short notebook's test is the import of torch and transformers: a server imports them once and is forked for
# each notebook. Whatever a notebook then changes, it changes only in its own process.
warm = multiprocessing.get_context('forkserver')
warm.set_forkserver_preload(['torch', 'transformers', 'transformers.trainer', 'peft', 'datasets', 'pandas',
                             'matplotlib.pyplot', 'scipy.stats', 'nbdev.test'])

def nbdev_test(path, flags, log):
    "In a process of its own: `nbdev-test PATH --flags FLAGS`, with its output in the file `log`"
    os.setsid()
    os.environ['WANDB_MODE'] = env['WANDB_MODE']
    out = os.open(log, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    for fd, to in (os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (out, 2): os.dup2(fd, to)
    sys.argv = ['nbdev-test', path]
    from nbdev.test import nbdev_test
    try: nbdev_test.__wrapped__(path, flags=flags, n_workers=0, cell_timeout=limit, cell_timing_min=1.)
    finally: sys.stdout.flush()

def test_notebook(nb, flags=''):
    "The notebook's cells run without an error, those with `flags` too; else `Failed` with its output"
    with tempfile.NamedTemporaryFile('r', errors='replace') as log:
        p = warm.Process(target=nbdev_test, args=(str(nb), flags, log.name))
        p.start(); running.add(p)
        try:
            p.join(limit)
            late = p.is_alive()
        finally:
            end(p); running.discard(p)
        if stopping.is_set(): raise KeyboardInterrupt
        p.join()
        said = log.read()
    cell_times.extend((float(s), f'{named(nb)}, cell {cell}') for cell, s in re.findall(rf'{re.escape(nb.name)}:(\S+): ([\d.]+)s$', said, re.M))
    if late: raise Failed(f"{named(nb)} did not end within {limit} s:\n{said}")
    if p.exitcode:
        flag = f' --flags {flags!r}' if flags else ''
        raise Failed(f"`nbdev-test nbs/{named(nb)}.ipynb{flag}` ended with exit code {p.exitcode}:\n{said}")

def need(ok, msg):
    "`Failed` with `msg` unless `ok`"
    if not ok: raise Failed(msg)

# --- the tree -------------------------------------------------------------------------------------------------

def files():
    "Tracked files and new ones that git does not ignore, as they are on disk"
    names = sh('git', 'ls-files', '-co', '--exclude-standard', '-z').split('\0')
    return sorted({root/n for n in names if n and (root/n).is_file()})

def tree():
    "Name to content hash of every file: what `git diff` would see, uncommitted work included"
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files()}

def check_export():
    "nbdev-export runs, and the README is written from the notebooks"
    sh('nbdev-export')
    tool('site')

def check_clean():
    "nbdev-clean runs"
    sh('nbdev-clean')

def check_tree(before):
    "export, tests and clean left the tree as it was"
    after = tree()
    changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    need(not changed, f"changed by export, tests or clean: {', '.join(changed)}\n"
                      'Review and commit them (`make export` makes the same changes).')

# --- notebooks ------------------------------------------------------------------------------------------------

def named(nb): return nb.relative_to(root/'nbs').with_suffix('').as_posix()

def notebooks(flags=()):
    "Notebooks with a cell to run; with `flags` only those with a cell of such a flag"
    from nbdev.config import get_config
    from nbdev.doclinks import nbglob
    from nbdev.test import nb_test_cells
    skip = get_config(root).tst_flags.split()
    def count(nb, force): return len(nb_test_cells(nb, skip, force))
    nbs = sorted(nbglob(root/'nbs', as_path=True))              # leaves out names that begin with _ or .
    return [nb for nb in nbs if (count(nb, flags) > count(nb, []) if flags else count(nb, []))]

# Those that train for long begin first, so that the last minutes do not wait for one of them
LONG = 'runs/ guides/ paper/ jobs/ hub/ training/ studies/'.split()

def longest_first(nb): return next((i for i, o in enumerate(LONG) if named(nb).startswith(o)), len(LONG)), named(nb)

# --- the docs -------------------------------------------------------------------------------------------------

def pages():
    "Pages whose commands and code are run: the front page and the guides"
    shown = re.compile('demo_|tutorial')
    return [root/'nbs/index.ipynb', *(nb for nb in sorted((root/'nbs/guides').glob('*.ipynb')) if not shown.match(nb.stem))]

def check_page(nb):
    "The commands and the code on a page run, or are only parsed if they need what this machine lacks"
    tool('snippets', nb.relative_to(root))

def check_site():
    "The site builds, and every link in it has a target"
    sh(sys.executable, '-m', 'mkdocs', 'build', '--strict', '-f', 'scripts/dev/mkdocs.yml')

def check_browser():
    "The site in a headless Chromium"
    p = subprocess.run([str(root/'.ci/browser')], text=True, capture_output=True)
    if p.returncode: raise Skipped(p.stderr.strip())
    tool('browser')

def check_slurm(flags):
    "The batch templates on a SLURM"
    if not shutil.which('sbatch'): raise Skipped('sbatch not found: apt-get install slurm-wlm munge, and start a cluster')
    if subprocess.run(['sinfo', '-h'], capture_output=True, timeout=30).returncode:
        raise Skipped('sbatch is installed, but no cluster answers sinfo')
    test_notebook(root/'nbs/guides/slurm.ipynb', flags)

# --- the package ----------------------------------------------------------------------------------------------

def settings():
    "The metadata of settings.ini"
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(root/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

def check_metadata():
    "pyproject.toml and __init__.py agree with settings.ini"
    cfg, py = settings(), tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']
    version = re.search(r'^__version__ = "(.+)"', (root/'rm_nbdev/__init__.py').read_text(encoding='utf-8'), re.M)
    pairs = dict(lib_name=py['name'], description=py['description'], min_python=py['requires-python'].removeprefix('>='),
                 git_url=py['urls']['Repository'], version=version and version[1])
    wrong = [f'{k}: settings.ini has {cfg[k]!r}, elsewhere it is {v!r}' for k, v in pairs.items() if cfg[k] != v]
    need(not wrong, '\n'.join(wrong))

def check_pins():
    "constraints.txt pins all requirements of settings.ini, this environment has these versions, environment.yml uses them"
    import yaml
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name as canon
    cfg = settings()
    lines = [l for l in (root/'constraints.txt').read_text(encoding='utf-8').splitlines() if l and not l.startswith('#')]
    odd = [l for l in lines if not re.fullmatch(r'[\w.-]+==[\w.]+', l)]
    need(not odd, f"constraints.txt: not of the form name==version: {odd}")
    pins = {canon(n): v for n, v in (l.split('==') for l in lines)}
    for r in map(Requirement, (cfg['requirements']+' '+cfg['dev_requirements']).split()):
        pin = pins.get(canon(r.name))
        need(pin and r.specifier.contains(pin), f"settings.ini requires {r}, constraints.txt pins {pin}; change one of them")
        have = distribution(r.name).version.split('+')[0]
        need(have == pin, f"{r.name}: constraints.txt pins {pin}, installed is {have}; run .ci/venv")
    deps = yaml.safe_load((root/'environment.yml').read_text(encoding='utf-8'))['dependencies']
    need(f"python={cfg['min_python']}" in deps, f"environment.yml: python is not {cfg['min_python']}, settings.ini's min_python")
    need({'pip': ['-c constraints.txt', '-e .[dev]']} in deps, 'environment.yml: its pip part does not install -e .[dev] with -c constraints.txt')

SHIPPED = 'train.ipynb', 'values.ipynb', 'values/lexicon.csv', 'plots/families.yaml', '__init__.py', 'core/__init__.py'

def check_wheel():
    "A wheel builds without network, holds the package and nothing of the developers, and its commands run from an empty folder"
    cfg = settings()
    with tempfile.TemporaryDirectory() as tmp:
        src, empty, venv = Path(tmp)/'src', Path(tmp)/'empty', Path(tmp)/'venv'
        empty.mkdir()
        for f in files():                          # a copy: a build leaves folders behind, and would pick old ones up
            to = src/f.relative_to(root)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(f.read_bytes())
        pip = [sys.executable, '-m', 'pip', '-q']
        sh(*pip, 'wheel', '--no-index', '--no-deps', '--no-build-isolation', '-w', tmp, src)
        wheel, = Path(tmp).glob('*.whl')
        sh(sys.executable, '-m', 'venv', '--without-pip', venv)
        site = Path(sh(venv/'bin/python', '-c', 'import site; print(site.getsitepackages()[0])').strip())
        sh(*pip, '--python', venv/'bin/python', 'install', '--no-index', '--no-deps', wheel)
        (site/'rest.pth').write_text(str(distribution('torch').locate_file('')))   # what the wheel needs, without the checkout
        for f in SHIPPED: need((site/cfg['lib_name']/f).exists(), f"the wheel lacks {cfg['lib_name']}/{f}")
        have = {p.relative_to(site/cfg['lib_name']).as_posix() for p in (site/cfg['lib_name']).rglob('*.py')}
        want = {p.relative_to(root/'rm_nbdev').as_posix() for p in (root/'rm_nbdev').rglob('*.py')}
        need(have == want, f'the wheel and rm_nbdev differ: {sorted(have ^ want)}')
        extra = [p.name for p in site.iterdir() if p.name in ('scripts', 'benchmarks', 'nbs')]
        need(not extra, f'the wheel holds {extra}')
        for line in cfg['console_scripts'].split():
            need('usage' in sh(venv/'bin'/line.split('=')[0], '--help', cwd=empty).lower(), f"{line}: --help has no usage")
        need(not list(empty.iterdir()), f"--help wrote files: {list(empty.iterdir())}")

def check_readme():
    "The files that README.md links to exist (that it is generated from nbs/index.ipynb is checked by export)"
    have = (root/'README.md').read_text(encoding='utf-8')
    dead = [t for t in re.findall(r'\]\(([^)#:\s]+)', have) if not (root/t).exists()]
    need(not dead, f'README.md links to files that do not exist: {dead}')

def check_parameters():
    "The notebooks that papermill executes have one cell tagged `parameters`: without it papermill would use the defaults"
    for name in 'train', 'values':
        cells = json.loads((root/f'nbs/{name}.ipynb').read_text(encoding='utf-8'))['cells']
        n = sum('parameters' in c['metadata'].get('tags', []) for c in cells)
        need(n == 1, f'nbs/{name}.ipynb has {n} cells tagged parameters, it must have exactly one')

def check_private():
    "No file contains a path of one machine or a token"
    found, secret = [], re.compile(r'(?<![\w.+/-])/(?:home|Users|root|tmp|work|farm)/\w+|\b(?:hf_|gh[opsu]_|sk-)\w{30,}|PRIVATE[ ]KEY-')
    for f in files():
        with contextlib.suppress(UnicodeDecodeError):
            found += [f'{f.relative_to(root)}: {m[0]}' for m in secret.finditer(f.read_text(encoding='utf-8'))]
    need(not found, '\n'.join(found))

# --- all of it ------------------------------------------------------------------------------------------------

def report(name, fn, *args):
    "Runs one check and prints its line; True if it passed, None if it was skipped"
    start, err, word = time.time(), None, 'FAILED'
    try: fn(*args)
    except Skipped as e: err, word = str(e), 'skipped'
    except Failed as e: err = str(e)
    except Exception as e: err = f'{type(e).__name__}: {e}'
    print(f"{word if err else 'passed'}  {name:<32}{time.time()-start:6.1f} s", flush=True)
    if err: print('\n'.join('    '+l for l in err.rstrip().splitlines()), flush=True)
    return None if word == 'skipped' and err else err is None

def at_the_same_time(todo):
    "Runs checks, several at a time; one result of `report` each"
    with ThreadPoolExecutor(at_once) as pool:
        jobs = [pool.submit(report, *o) for o in todo]
        try: yield from (j.result() for j in as_completed(jobs))
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for p in list(running): end(p)
            raise

def checks(only, slow, alone):
    "Runs the checks that `only` names (all if None), in order; one result of `report` each. `alone` runs only notebooks with slow cells"
    def wanted(todo): return [o for o in todo if only is None or only in o[0]]
    flags, with_slow = 'slow' if slow or alone else '', ' slow' if alone else ''
    before = tree()
    yield from (report(*o) for o in wanted([('export', check_export)]))
    todo = [(f'slurm{with_slow}', check_slurm, f'slurm {flags}')]
    shown = pages() if slow or alone else pages()[:1]                # the front page always, the guides with what is slow
    todo += [(f'page {named(nb)}', check_page, nb) for nb in shown if not alone or nb != pages()[0]] + [('site', check_site)]
    if not alone: todo += [(f'dev {p.stem}', tool, p.stem) for p in sorted((root/'scripts/dev').glob('test_*.py'))]
    some = [nb for nb in notebooks(['slow']) if nb.stem != 'slurm'] if alone else notebooks()
    todo += [(named(nb) + with_slow, test_notebook, nb, flags) for nb in sorted(some, key=longest_first)]
    yield from at_the_same_time(wanted(todo))
    if slow or alone: yield from (report(*o) for o in wanted([('browser', check_browser)]))
    if not alone: yield from (report(*o) for o in wanted([('house', tool, 'house')]))
    last = [('clean', check_clean), ('tree unchanged', check_tree, before)]
    if not alone:
        package = check_parameters, check_metadata, check_pins, check_readme, check_private, check_wheel
        last += [(fn.__name__.removeprefix('check_'), fn) for fn in package]
    yield from (report(*o) for o in wanted(last))

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--only', metavar='NAME', help='run the notebooks and checks with NAME in their name')
    p.add_argument('--slow', action='store_true', help='also run the cells flagged slow')
    p.add_argument('--slow-alone', action='store_true', help='run only the notebooks that have cells flagged slow, with these cells')
    a = p.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.update({k: v for k, v in env.items() if k != 'WANDB_MODE'})  # for the fork server; transformers' import would talk of wandb
    results, stop, start = [], False, time.time()
    try: results.extend(checks(a.only, a.slow, a.slow_alone))
    except KeyboardInterrupt: stop = True
    if stop: print('interrupted')
    elif not results: print(f'--only {a.only}: no notebook or check has this in its name')
    if cell_times:
        print('the longest cells:')
        for seconds, cell in sorted(cell_times, reverse=True)[:10]: print(f'  {seconds:6.1f} s  {cell}')
    print(f'{time.time()-start:.0f} s in total')
    done = [o for o in results if o is not None]
    if len(done) < len(results): print(f'{len(results)-len(done)} skipped for the reasons above')
    print(f'{sum(done)} passed, {done.count(False)} failed', flush=True)
    sys.exit(130 if stop else not results or not all(done))

if __name__ == '__main__': main()
