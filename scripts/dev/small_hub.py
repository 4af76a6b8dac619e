"""The Hugging Face Hub's protocol on loopback, in memory, with faults on demand"""

import base64, contextlib, hashlib, json, re, secrets, threading
from dataclasses import dataclass
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse
import yaml

LFS = re.compile(r'\.(safetensors|bin|pt|pth|h5|onnx|model|parquet|zip)$|^(tokenizer\.json)$')  # Names kept as LFS objects

def git_sha1(
    data:bytes, # Content of a file
)->str:         # Its hash in git
    "The hash that git gives a file"
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()

@dataclass
class Blob:
    "A file in a commit"
    data:bytes        # Its content
    lfs:bool=False    # Kept as an LFS object
    @property
    def oid(self): return git_sha1(self.data)
    @property
    def sha256(self): return hashlib.sha256(self.data).hexdigest()
    def entry(self, path): # As the Hub lists it
        return dict(type='file', path=path, size=len(self.data), oid=self.oid) | (dict(lfs=dict(oid=self.sha256, size=len(self.data), pointerSize=130)) if self.lfs else {})

@dataclass
class Commit:
    "A state of a repository"
    oid:str; files:dict; title:str; parent:str|None; date:str

class Refused(Exception):
    "An answer that is an error"
    def __init__(self, status, message, code=None, url=None): super().__init__(message); self.status,self.code,self.url = status,code,url

class Repo:
    "Commits, branches and tags"
    def __init__(self, private=False):
        self.private,self.commits,self.branches,self.tags = private,{},{},{}
        self.commit('main', dict({'.gitattributes':Blob(b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n')}), 'initial commit')

    def commit(self, branch, files, title): # A new state of a branch
        parent = self.branches.get(branch)
        oid = hashlib.sha1(json.dumps([len(self.commits), parent, title, {k:v.oid for k,v in files.items()}, secrets.token_hex(8)]).encode()).hexdigest()
        self.commits[oid] = Commit(oid, files, title, parent, datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.000Z'))
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, rev): # The commit that a branch, a tag or a hash names
        oid = self.branches.get(rev) or self.tags.get(rev) or rev
        if oid not in self.commits: raise Refused(404, f'Invalid rev id: {rev}', 'RevisionNotFound')
        return self.commits[oid]

    def history(self, rev): # Newest first
        c,out = self.at(rev),[]
        while c: out.append(c); c = self.commits.get(c.parent)
        return out

@dataclass
class Fault:
    "Something that goes wrong"
    match:str              # Regular expression, searched in 'METHOD path'
    kind:int|str           # A status, or one of cut, cut_inside, lost, hang, trickle
    times:float=1          # How often; `math.inf`: always
    retry_after:int|None=None # Seconds in a Retry-After header
    skip:int=0             # Let so many requests that match pass first
    met:int=0              # How often it has happened

    def meets(self, request):
        if self.times <= 0 or not re.search(self.match, request): return False
        if self.skip > 0: self.skip -= 1; return False
        self.times -= 1; self.met += 1
        return True

@dataclass
class Request:
    "What was asked"
    method:str; path:str; sent:int; user:str|None; fault:int|str|None=None; status:int|None=None

_ROUTES = []
def route(method, pattern): # Decorator: this method answers these requests
    def _add(f): _ROUTES.append((method, re.compile(pattern+'$'), f)); return f
    return _add

_ID = r'(?P<repo>[^/]+/[^/]+)'

class Routes:
    "What the Hub answers; `self.hub` is the Hub, `self.user` who asks"
    def __init__(self, hub, user, query, body, headers): self.hub,self.user,self.query,self.body,self.headers = hub,user,query,body,headers
    @property
    def json(self): return json.loads(self.body or b'{}')

    def may_write(self, namespace): # Rights of the login
        if self.user is None: raise Refused(401, 'Invalid username or password.')
        u = self.hub.users[self.user]
        if u['role'] == 'read' or (namespace != self.user and u['orgs'].get(namespace, 'read') == 'read'): raise Refused(403, f"You don't have the rights to write to {namespace}")

    def get(self, repo, write=False): # The repository, if the login may see it
        if write: self.may_write(repo.split('/')[0])
        r = self.hub.repos.get(repo)
        hidden = r and r.private and (self.user is None or (repo.split('/')[0] not in (self.user, *self.hub.users[self.user]['orgs'])))
        if r is None or hidden: raise Refused(404 if self.user else 401, 'Repository not found', 'RepoNotFound')
        return r

    @route('GET', '/api/whoami-v2')
    def whoami(self):
        if self.user is None: raise Refused(401, 'Invalid user token.')
        u = self.hub.users[self.user]
        return dict(type='user', name=self.user, orgs=[dict(type='org', name=o, roleInOrg=r) for o,r in u['orgs'].items()], auth=dict(type='access_token', accessToken=dict(displayName='test', role=u['role'])))

    @route('POST', '/api/repos/create')
    def create(self):
        o = self.json
        space = o.get('organization') or self.user
        self.may_write(space)
        name = f"{space}/{o['name']}"
        if name in self.hub.repos: raise Refused(409, f'You already created this model repo: {name}', url=f'{self.hub.url}/{name}')
        self.hub.repos[name] = Repo(o.get('visibility') == 'private' or bool(o.get('private')))
        return dict(url=f'{self.hub.url}/{name}', name=name, id=name)

    @route('POST', '/api/validate-yaml')
    def validate(self):
        m = re.match(r'---\n(.*?)\n---\n', self.json['content'], re.S)
        try: meta = yaml.safe_load(m.group(1)) if m else {}
        except yaml.YAMLError as e: raise Refused(400, f'YAML: {str(e).splitlines()[0]}', 'yaml')
        if not isinstance(meta, dict): raise Refused(400, 'metadata must be names and values', 'yaml')
        return dict(errors=[], warnings=[] if m else [dict(message='empty or missing yaml metadata in repo card')])

class Reading(Routes):
    "Routes that change nothing"
    @route('GET', f'/api/models/{_ID}(/revision/(?P<rev>[^/]+))?')
    def info(self, repo, rev=None):
        r = self.get(repo); c = r.at(rev or 'main')
        return dict(_id='0', id=repo, modelId=repo, sha=c.oid, private=r.private, gated=False, disabled=False, downloads=0, likes=0, tags=[], siblings=[dict(rfilename=p) for p in c.files])

    @route('GET', f'/api/models/{_ID}/refs')
    def refs(self, repo):
        r = self.get(repo)
        def listed(d, kind): return [dict(name=k, ref=f'refs/{kind}/{k}', targetCommit=v) for k,v in d.items()]
        return dict(branches=listed(r.branches, 'heads'), tags=listed(r.tags, 'tags'), converts=[])

    @route('GET', f'/api/models/{_ID}/tree/(?P<rev>[^/]+)(/(?P<path>.*))?')
    def tree(self, repo, rev, path=None):
        files = self.get(repo).at(rev).files
        if path: files = {k:v for k,v in files.items() if k.startswith(path.strip('/') + '/')}
        if path and not files: raise Refused(404, f'{path} does not exist', 'EntryNotFound')
        depth = len(path.strip('/').split('/')) if path else 0
        if self.query.get('recursive', ['false'])[0].lower() not in ('true', '1'):
            folders = {'/'.join(k.split('/')[:depth+1]) for k in files if k.count('/') > depth}
            return [b.entry(k) for k,b in files.items() if k.count('/') == depth] + [dict(type='directory', path=f, size=0, oid='0'*40) for f in sorted(folders)]
        return [b.entry(k) for k,b in sorted(files.items())]

    @route('POST', f'/api/models/{_ID}/paths-info/(?P<rev>[^/]+)')
    def paths(self, repo, rev):
        files = self.get(repo).at(rev).files
        wanted = self.json['paths'] if self.body[:1] == b'{' else parse_qs(self.body.decode())['paths']
        return [files[p].entry(p) for p in wanted if p in files]

    @route('GET', f'/api/models/{_ID}/commits/(?P<rev>[^/]+)')
    def commits(self, repo, rev):
        return [dict(id=c.oid, title=c.title, message='', authors=[dict(user=self.user or 'nobody')], date=c.date) for c in self.get(repo).history(rev)]

    @route('(GET|HEAD)', f'/{_ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)')
    def resolve(self, repo, rev, path):
        c = self.get(repo).at(rev)
        if path not in c.files: raise Refused(404, f'{path} does not exist in {rev}', 'EntryNotFound')
        b = c.files[path]
        return b.data, {'X-Repo-Commit':c.oid, 'ETag':f'"{b.sha256 if b.lfs else b.oid}"', 'X-Linked-Size':str(len(b.data))} | ({'X-Linked-Etag':f'"{b.sha256}"'} if b.lfs else {})

class Writing(Reading):
    "Routes that change something"
    @route('POST', f'/api/models/{_ID}/preupload/(?P<rev>[^/]+)')
    def preupload(self, repo, rev):
        files,o = self.get(repo, write=True).at(rev).files,self.json
        ignored = o['gitIgnore'] if 'gitIgnore' in o else (files['.gitignore'].data.decode() if '.gitignore' in files else '')
        def one(f):
            b = files.get(f['path'])
            return dict(path=f['path'], uploadMode='lfs' if LFS.search(f['path']) else 'regular', shouldIgnore=any(l and Path(f['path']).match(l) for l in ignored.split()), oid=b and (b.sha256 if b.lfs else b.oid))
        return dict(files=[one(f) for f in o['files']])

    @route('POST', f'/{_ID}\\.git/info/lfs/objects/batch')
    def batch(self, repo):
        self.get(repo, write=True)
        def actions(oid): return {} if oid in self.hub.objects else dict(actions=dict(upload=dict(href=f'{self.hub.url}/lfs/{oid}'), verify=dict(href=f'{self.hub.url}/lfs-verify/{repo}')))
        return dict(transfer='basic', objects=[dict(oid=o['oid'], size=o['size']) | actions(o['oid']) for o in self.json['objects']])

    @route('PUT', '/lfs/(?P<oid>[0-9a-f]{64})')
    def put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid: raise Refused(400, 'the content does not have this hash')
        self.hub.objects[oid] = self.body
        return {}

    @route('POST', f'/lfs-verify/{_ID}')
    def verify(self, repo):
        if self.json['oid'] not in self.hub.objects: raise Refused(404, 'object not found')
        return {}

    @route('POST', f'/api/models/{_ID}/commit/(?P<rev>[^/]+)')
    def commit(self, repo, rev):
        r = self.get(repo, write=True)
        if rev not in r.branches: raise Refused(404, f'{rev}: no such branch', 'RevisionNotFound')
        head,files = {},dict(r.at(rev).files)
        for line in self.body.splitlines():
            o = json.loads(line); v = o['value']
            if o['key'] == 'header': head = v
            elif o['key'] == 'file': files[v['path']] = Blob(base64.b64decode(v['content']))
            elif o['key'] == 'lfsFile':
                if v['oid'] not in self.hub.objects: raise Refused(400, f"{v['path']}: its content was not uploaded")
                files[v['path']] = Blob(self.hub.objects[v['oid']], lfs=True)
            elif o['key'] == 'deletedFile':
                if files.pop(v['path'], None) is None: raise Refused(404, "A file with this name doesn't exist", 'EntryNotFound')
            elif o['key'] == 'deletedFolder': files = {k:b for k,b in files.items() if not k.startswith(v['path'].rstrip('/') + '/')}
        if head.get('parentCommit') not in (None, r.branches[rev]): raise Refused(412, 'A commit has happened since')
        c = r.commit(rev, files, head['summary'])
        return dict(success=True, commitOid=c.oid, commitUrl=f'{self.hub.url}/{repo}/commit/{c.oid}', hookOutput='')

    @route('POST', f'/api/models/{_ID}/tag/(?P<rev>[^/]+)')
    def tag(self, repo, rev):
        r = self.get(repo, write=True); c = r.at(rev); name = self.json['tag']
        if name in r.tags: raise Refused(409, f'Tag {name} already exists')
        r.tags[name] = c.oid
        return {}

    @route('DELETE', f'/api/models/{_ID}/tag/(?P<name>[^/]+)')
    def untag(self, repo, name):
        r = self.get(repo, write=True)
        if r.tags.pop(name, None) is None: raise Refused(404, f'{name}: no such tag', 'RevisionNotFound')
        return {}

    @route('POST', f'/api/models/{_ID}/branch/(?P<name>[^/]+)')
    def branch(self, repo, name):
        r = self.get(repo, write=True)
        if name in r.branches: raise Refused(409, f'Reference already exists: {name}')
        r.branches[name] = r.at(self.json.get('startingPoint', 'main')).oid
        return {}

class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass

    def _body(self): # Whole, with or without a length
        if 'chunked' not in self.headers.get('Transfer-Encoding', ''): return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        out = b''
        while n := int(self.rfile.readline().split(b';')[0], 16): out += self.rfile.read(n); self.rfile.readline()
        self.rfile.readline()
        return out

    def _answer(self, status, data, headers, upto=None): # The answer, or its first `upto` bytes
        self.send_response(status)
        for k,v in ({'Content-Type':'application/json'} | headers).items(): self.send_header(k, v)
        self.send_header('Content-Length', str(len(data))); self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data[:upto])

    def _trickle(self): # White space before JSON that never comes
        self.send_response(200); self.send_header('Content-Type', 'application/json'); self.send_header('Content-Length', str(10**9)); self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.hub.closing.wait(.1): self.wfile.write(b' '); self.wfile.flush()

    def _result(self, url, body, user): # (status, bytes, headers)
        try:
            for method,pattern,f in _ROUTES:
                if re.fullmatch(method, self.command) and (m := pattern.match(url.path)):
                    args = {k:unquote(v) for k,v in m.groupdict().items() if v is not None}
                    with self.server.hub.lock: out = f(Writing(self.server.hub, user, parse_qs(url.query), body, self.headers), **args)
                    return (200, *out) if isinstance(out, tuple) else (200, json.dumps(out).encode(), {})
            raise Refused(404, f'{self.command} {url.path}: this small Hub does not know it')
        except Refused as e:
            body = json.dumps(dict(error=str(e), errors=[dict(message=str(e))], warnings=[]) | (dict(url=e.url) if e.url else {}))
            return e.status, body.encode(), {'X-Error-Message':str(e)} | ({'X-Error-Code':e.code} if e.code else {})

    def _do(self):
        hub,url,body = self.server.hub,urlparse(self.path),self._body()
        user = hub.tokens.get(self.headers.get('Authorization', '').removeprefix('Bearer '))
        with hub.lock:
            fault = next((f for f in hub.faults if f.meets(f'{self.command} {url.path}')), None)
            log = Request(self.command, url.path, len(body), user, fault and fault.kind); hub.log.append(log)
        kind = fault and fault.kind
        if 'Authorization' in self.headers and user is None: kind = kind or 401
        if kind == 'hang': hub.closing.wait()
        elif kind == 'trickle': self._trickle()
        if kind in ('cut', 'hang', 'trickle'): self.close_connection = True; return
        if isinstance(kind, int): status,data,headers = kind,json.dumps(dict(error=f'a planned {kind}')).encode(),{'X-Error-Message':'Invalid credentials in Authorization header' if kind == 401 else f'a planned {kind}'} | ({'Retry-After':str(fault.retry_after)} if fault and fault.retry_after is not None else {})
        else: status,data,headers = self._result(url, body, user)
        log.status = status
        if kind == 'lost': self.close_connection = True; return
        self._answer(status, data, headers, len(data)//2 if kind == 'cut_inside' else None)
        if kind == 'cut_inside': self.close_connection = True
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _do

class SmallHub:
    "A Hub on loopback: `with SmallHub() as hub: hub.url`"
    def __init__(self,
        user:str='ann',        # A user, whose token is `hub.token`
        orgs:dict|None=None,   # Organizations: name -> the user's role in it (read, contributor, write, admin)
        role:str='write',      # What the token may do: read or write
    ):
        self.users,self.tokens,self.repos,self.objects = {},{},{},{}
        self.faults,self.log,self.lock,self.closing = [],[],threading.RLock(),threading.Event()
        self.token = self.add_user(user, orgs or {}, role)

    def add_user(self, name, orgs=None, role='write')->str: # Its token
        "Another user"
        token = f'hf_{secrets.token_hex(17)}'
        self.users[name],self.tokens[token] = dict(orgs=orgs or {}, role=role),name
        return token

    def fault(self, match, kind, times=1, **kw)->Fault:
        "Something that goes wrong from now on; see `Fault`"
        self.faults.append(Fault(match, kind, times, **kw))
        return self.faults[-1]

    def sent(self, match='', since=0)->int: # Bytes in the bodies of requests that match
        "How much was sent to the Hub"
        return sum(r.sent for r in self.log[since:] if re.search(match, f'{r.method} {r.path}'))

    def count(self, match='', since=0)->int: # Requests that match
        "How often the Hub was asked"
        return sum(bool(re.search(match, f'{r.method} {r.path}')) for r in self.log[since:])

    def env(self, home)->dict: # Environment of a client, with its cache in the folder `home`
        "What makes the real client talk to this Hub"
        return dict(HF_ENDPOINT=self.url, HF_TOKEN=self.token, HF_HOME=str(home), HF_HUB_DISABLE_XET='1', HF_HUB_OFFLINE='0', HF_HUB_DISABLE_TELEMETRY='1', HF_HUB_DISABLE_PROGRESS_BARS='1', NO_PROXY='127.0.0.1', no_proxy='127.0.0.1')

    def __enter__(self):
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
        self.server.hub,self.server.daemon_threads,self.server.block_on_close = self,True,False
        self.server.handle_error = lambda *_: None                                  # clients that go away
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'
        threading.Thread(target=self.server.serve_forever, kwargs=dict(poll_interval=.05), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown(); self.server.server_close()
