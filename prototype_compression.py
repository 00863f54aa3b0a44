import sys; sys.path.insert(0,'/work/afterglow')
import numpy as np, jax, jax.numpy as jnp
jax.config.update('jax_enable_x64',True)
from hbm_jax.spectra.ogip import *
from hbm_jax.absorption import neutral_cross_section, WhimTable
from hbm_jax.absorption.transmission import edges_of_neutral_matter, EnergyBins
from hbm_jax.cosmology import Cosmology
X='/work/shared/data/xray/'
s=read_spectrum(X+'swift_xrt_grb070110/interval0pc.pi',rmf=X+'swift_xrt_response/swxpc0to12s6_20130101v014.rmf.gz')
R=s.response; z=2.352
e=R.energy; 
sel=(s.channels>=30)&(s.channels<1000)
A=R.matrix.toarray()[:,sel]
flat=Cosmology.flat(H0=70.,Om0=0.3)
sig=jax.jit(neutral_cross_section)
cuts=np.unique(np.concatenate([edges_of_neutral_matter(e[0]*(1+q),e[-1]*(1+q))/(1+q) for q in (0,z)]))
print('edges',len(cuts))
# reference: fine GL per part of each bin
brk=np.unique(np.concatenate([e,cuts])); 
x,w=np.polynomial.legendre.leggauss(6)
lo,hi=brk[:-1],brk[1:]
En=(lo[:,None]+.5*(hi-lo)[:,None]*(1+x)); Wn=.5*(hi-lo)[:,None]*w
bin_=np.searchsorted(e,0.5*(lo+hi))-1
def tables(E):
    return np.asarray(sig(E)),np.asarray(sig(E*(1+z))),WhimTable(E,z,cosmology=flat)
Er=En.ravel(); tref=tables(Er)
def f(E,t,p):
    G,nm,nh,n0,T=p
    return E**-G*np.exp(-nm*t[0]-nh*t[1]-np.asarray(t[2](n0,T)))
def ref(p):
    v=(f(Er,tref,p).reshape(En.shape)*Wn).sum(1)
    S=np.zeros(len(e)-1); np.add.at(S,bin_,v)
    return S@A
def panels(nodes, maxw):
    b=np.unique(np.concatenate([[e[0],e[-1]],cuts]))
    # drop tiny panels? split wide in log
    out=[b[0]]
    for a,c in zip(b[:-1],b[1:]):
        k=int(np.ceil(np.log(c/a)/maxw)); out+=list(np.geomspace(a,c,k+1)[1:])
    b=np.array(out)
    xg,_=np.polynomial.legendre.leggauss(nodes)
    E=[];M=[]
    Ab=np.asarray(A)
    from numpy.polynomial import legendre
    # Lagrange via legendre: coefficients; integrate over pieces
    rows=[]
    for a,c in zip(b[:-1],b[1:]):
        xs=a+.5*(c-a)*(1+xg); E.append(xs)
        i0,i1=np.searchsorted(e,a,'right')-1,np.searchsorted(e,c,'left')
        i1=max(i1,i0+1)
        l=np.maximum(e[i0:i1],a); h=np.minimum(e[i0+1:i1+1],c)
        xq=l[:,None]+.5*(h-l)[:,None]*(1+xg); wq=.5*(h-l)[:,None]*_w(nodes)
        u=(2*xq-a-c)/(c-a)
        V=legendre.legvander(xg,nodes-1); C=np.linalg.inv(V)
        L=legendre.legvander(u.ravel(),nodes-1)@C
        W=(wq.ravel()[:,None]*L).reshape(*xq.shape,nodes).sum(1) # bins,nodes
        rows.append(W.T@Ab[i0:i1])
    return np.concatenate(E),np.concatenate(rows)
def _w(n): return np.polynomial.legendre.leggauss(n)[1]
rng=np.random.default_rng(0)
draws=[(rng.normal(2,.5),0.05*rng.lognormal(0,.3),10**rng.normal(-0.3,.7),10**rng.uniform(-8,-5.5),rng.uniform(4.5,7.5)) for _ in range(40)]
refs=[ref(p) for p in draws]
D=s.counts[sel]
def lnl(m):
    m=m/m.sum()*D.sum(); return (D*np.log(m)-m).sum()
eb=EnergyBins(e,redshifts=(0.,z)); t3=tables(np.asarray(eb.energy)); 
d=[abs(lnl(np.asarray(eb.average(jnp.asarray(f(np.asarray(eb.energy),t3,p))))*np.diff(e)@A)-lnl(r)) for p,r in zip(draws,refs)]
print('EnergyBins', len(eb.energy), max(d), np.median(d))
for nodes in (3,4,6,8):
    for mw in (0.05,0.1,0.2,0.5):
        E,M=panels(nodes,mw); t=tables(E)
        r=[f(E,t,p)@M for p in draws]
        dl=[lnl(a)-lnl(b) for a,b in zip(r,refs)]
        rel=[np.abs(a/b-1).max() for a,b in zip(r,refs)]
        print(nodes,mw,len(E),'max dlnL %.2e med %.2e rel %.1e'%(np.max(np.abs(dl)),np.median(np.abs(dl)),max(rel)))
