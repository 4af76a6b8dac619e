"Tests of the small Hub: `python scripts/dev/test_small_hub.py` runs them all"

import os, subprocess, sys, tempfile
from pathlib import Path
from fastcore.test import test_eq, test_fail
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.dev.small_hub import LFS, Blob, Fault, Refused, Repo, Request, SmallHub, git_sha1, small_hub

def client(hub, code, **env): # Exit code, output, last line of errors of a process that runs `code`
    "The client reads `HF_ENDPOINT` when it is imported, so it runs in a process of its own"
    with tempfile.TemporaryDirectory() as home:
        r = subprocess.run([sys.executable, '-c', code], env={**os.environ, **hub.env(home), **env},
                           capture_output=True, text=True, timeout=120)
    return r.returncode, r.stdout, r.stderr.strip().splitlines()[-1:]

def test_repository():
    test_eq(git_sha1(b'hello\n'), 'ce013625030ba8dba906f756967f9e9ca394464a')    # as `git hash-object` says
    repo = Repo()
    one = repo.commit('main', {'a.txt':Blob(b'1')}, 'one')
    repo.tags['v1'] = one.oid
    two = repo.commit('main', {'a.txt':Blob(b'2')}, 'two')
    test_eq([c.title for c in repo.history('main')], ['two', 'one', 'initial commit'])
    test_eq(repo.at('v1').files['a.txt'].data, b'1')
    test_eq(repo.at(two.oid), two)
    test_fail(lambda: repo.at('v2'), contains='Invalid rev id: v2', exc=Refused)

def test_large_files():
    assert LFS.search('model-00001-of-00002.safetensors') and LFS.search('v_head.pt')
    assert not LFS.search('config.json')

def test_fault():
    fault = Fault('POST .*/commit/', 503, times=1, skip=1)
    test_eq([fault.meets('POST /api/models/a/b/commit/main') for _ in range(4)], [False, True, False, False])
    test_eq(Fault('tag', 'cut').meets('POST /api/models/a/b/commit/main'), False)

CLIENT = '''
from pathlib import Path
from huggingface_hub import HfApi, CommitOperationAdd as Add, CommitOperationDelete as Delete
from huggingface_hub import hf_hub_download, snapshot_download
api = HfApi()
print(api.whoami()['name'], api.create_repo('team/m', private=True).repo_id)
first = [Add('w.safetensors', b'0'*1000), Add('config.json', b'{}'), Add('sub/a.jinja', b'x')]
c = api.create_commit('team/m', first, commit_message='one')
api.create_tag('team/m', tag='step-0', revision=c.oid)
second = [Add('w.safetensors', b'0'*1000), Add('config.json', b'{"a":1}'), Delete('sub/a.jinja')]
d = api.create_commit('team/m', second, commit_message='two', parent_commit=c.oid)
files = sorted(f.path for f in api.list_repo_tree('team/m', recursive=True))
print(files, [c.title for c in api.list_repo_commits('team/m')])
tags = {t.name: t.target_commit for t in api.list_repo_refs('team/m').tags}
assert tags == {'step-0': c.oid} and c.oid != d.oid
assert Path(hf_hub_download('team/m', 'config.json', revision='step-0')).read_text() == '{}'
there = Path(snapshot_download('team/m', revision='step-0'))
print(sorted(p.name for p in there.rglob('*') if p.is_file()), api.model_info('team/m').private)
'''

def test_real_client():
    "It creates a private repository, commits a large and a small file, tags, lists, moves on, and downloads by tag"
    with SmallHub(orgs=dict(team='write', other='read')) as hub:
        code,out,err = client(hub, CLIENT)
        test_eq((code, err), (0, []))
        test_eq(out.splitlines(), [
            'ann team/m', "['.gitattributes', 'config.json', 'w.safetensors'] ['two', 'one', 'initial commit']",
            "['.gitattributes', 'a.jinja', 'config.json', 'w.safetensors'] True"])
        test_eq(hub.sent('PUT /lfs/'), 1000)                                      # the same content was sent once
        test_eq(len(hub.repos['team/m'].commits), 3)
        assert hub.repos['team/m'].private
        assert hub.log[0] == Request('GET', '/api/whoami-v2', 0, 'ann', None, 200)

def tried(hub, code, **env): # What the client printed, else the error that it ended with
    _,out,err = client(hub, 'from huggingface_hub import HfApi; api = HfApi()\n'+code, **env)
    return (out.strip() or err[0])[:90]

def test_refusals():
    with SmallHub(orgs=dict(team='write', other='read')) as hub:
        failing = 'try: {}\nexcept Exception as e: print(type(e).__name__, e.response.status_code)'
        assert '403' in tried(hub, failing.format("api.create_repo('other/m')"))
        assert 'RepositoryNotFoundError' in tried(hub, failing.format("api.list_repo_refs('team/none')"))
        assert 'Invalid user token' in tried(hub, 'api.whoami()', HF_TOKEN='hf_wrong')

ASK = "try: print(api.whoami()['name'])\nexcept Exception as e: print(type(e).__name__)"
ALARM = '''import os, signal
def stop(*_): print('still waiting', flush=True); os._exit(0)
signal.signal(signal.SIGALRM, stop)
signal.alarm(2)
'''

def test_faults_with_the_client():
    with SmallHub() as hub:
        for kind,says in ((500, 'HfHubHTTPError'), ('cut', 'RemoteProtocolError'),
                          ('cut_inside', 'RemoteProtocolError'), ('lost', 'RemoteProtocolError')):
            hub.fault('whoami', kind)
            test_eq((kind, tried(hub, ASK)), (kind, says))
        test_eq(tried(hub, ASK), 'ann')                                           # each fault happens once
        for kind in ('hang', 'trickle'):
            hub.fault('whoami', kind)
            test_eq(tried(hub, ALARM + ASK), 'still waiting')
        test_eq([f.met for f in hub.faults], [1]*6)

def test_datasets():
    with SmallHub() as hub:
        hub.repos['ann/d'] = repo = Repo()
        repo.commit('main', {'x/a.csv':Blob(b'1')}, 'one')
        code = """kind = dict(repo_type='dataset')
print(api.repo_info('ann/d', **kind).sha, [f.path for f in api.list_repo_tree('ann/d', recursive=True, **kind)],
      open(api.hf_hub_download('ann/d', 'x/a.csv', **kind)).read())"""
        test_eq(tried(hub, code), f"{repo.branches['main']} ['x/a.csv'] 1")

def test_environment():
    before = dict(os.environ)
    with small_hub() as hub:
        test_eq(os.environ['HF_ENDPOINT'], hub.url)
        test_eq(hub.users['ann']['orgs'], dict(team='write'))
    test_eq(dict(os.environ), before)

if __name__ == '__main__':
    own = {k:f for k,f in globals().items() if k.startswith('test_') and getattr(f, '__module__', '') == '__main__'}
    for f in own.values(): f()
    print(f'{len(own)} tests passed')
