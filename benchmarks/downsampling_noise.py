"""Measure what the downsamplings lose in 8 bit: by their inputs, their weights, and with a step of the weights for each pixel.

python -m neonext_ms.benchmarks.downsampling_noise digits | cifar | neonext-0 ..., with the weights of `neonext-bench claims quantize` in runs/quantize
"""
import sys
from pathlib import Path
from dataclasses import replace
import numpy as np
from neonext_ms.export.quantize import calibrate as C, apply
from neonext_ms.export.quantize.apply import quantize, quantizable, equalized, quantize_layer
from neonext_ms.export.quantize.cost import outputs_of, compare_outputs
from neonext_ms.export.quantize.forms import host_graph
from neonext_ms.export.quantize.images import open_images, spread
from neonext_ms.export.graph import Layer
from neonext_ms.models.scales import LayerScale
which=sys.argv[1]
quiet=lambda s:None
def setup():
    if which in ('digits','cifar'):
        from neonext_ms.export.source import Source
        from neonext_ms.export.fold import fold
        from neonext_ms.export.graph import original_graph
        from neonext_ms.images.preprocessing import Preprocessing
        if which=='digits':
            s=Source.from_checkpoint('tests/data/digits_64.pt',(1,1,0,0),False,None,None); cal=val='digits'; pre=Preprocessing()
        else:
            s=Source.from_checkpoint('tests/data/cifar10_64.safetensors',None,False,None,None); cal='/data/cifar10/train'; val='/data/cifar10/test'
            pre=Preprocessing.from_dict(s.metadata['preprocessing'])
        g,_=fold(original_graph(s.architecture,s.arrays,(64,64)))
        return g,open_images(cal,(64,64),pre,10,None,128),open_images(val,(64,64),pre,10,None,int(sys.argv[2]) if len(sys.argv)>2 else 120,True)
    from neonext_ms.common.environment import prepare_environment
    prepare_environment(2)
    from neonext_ms.training.config.load import load_config
    from neonext_ms.benchmarks.claims.rivals import Task, with_seed, trained
    from neonext_ms.export.quantize.fine_tuning import TrainingImages
    name,seed=which.rsplit('-',1)
    t=Task.from_config(with_seed(load_config("configs/digits.yaml",["model.image_size=64"]),int(seed)),print)
    a=trained(t,name,Path(f"runs/quantize/{which}.safetensors"),quiet)
    val=TrainingImages(t.val,t.plan,120); val.labels=[t.val.labels[i] for i in val._chosen]
    return t.graph(name,a),TrainingImages(t.train,t.plan,128),val
def steps(w,keep):
    ax=tuple(i for i in range(w.ndim) if i not in keep); st=np.abs(w).max(ax,keepdims=True)/127
    return np.where(st>0,st,1)
def rounded(w,keep): st=steps(w,keep); return np.rint(w/st)*st
def two(layer,scale,w):
    """8-bit activations, weights in about 16 bits: two int8 layers and their sum."""
    scale=replace(scale,correction=())
    hi=quantize_layer(replace(layer,name=layer.name+'.hi',output=layer.output+'.hi',arrays={**layer.arrays,'weight':w}),scale)
    rest=w-hi.arrays['weight'].astype('f8')*hi.arrays['weight_step'].astype('f8')[:,None,None,None]
    lo=quantize_layer(replace(layer,name=layer.name+'.lo',output=layer.output+'.lo',arrays={'weight':rest}),scale)
    return [hi,lo,Layer('add',layer.name+'.sum',(hi.output,lo.output),layer.output,{}, {})]
def variant(g,sc,mode,match):
    eq,sc=equalized(g,sc); changes=[]
    for l in quantizable(eq):
        s=sc.layers[l.name]
        if l.name not in match: changes.append(([l],[quantize_layer(l,s)])); continue
        w=l.arrays['weight'].astype('f8')
        if mode=='all': new=[quantize_layer(l,s)]
        elif mode=='none': new=[l]
        elif mode=='weights':new=[replace(l,arrays={**l.arrays,'weight':rounded(w,(0,)).astype('f4')})]
        elif mode=='weights per pixel':new=[replace(l,arrays={**l.arrays,'weight':rounded(w,(0,2,3)).astype('f4')})]
        elif mode=='inputs':new=two(l,s,w)
        elif mode=='inputs and weights per pixel':new=two(l,s,rounded(w,(0,2,3)))
        changes.append(([l],new))
    return eq.replaced(changes)
g,cal,val=setup()
exp=outputs_of(g,val,'auto',quiet,'')
names=[l.name for l in quantizable(g)]
ds=[n for n in names if 'downsample' in n]
for bits in (8,4):
    sc=C.calibrate(g,cal,'percentile','',weight_bits=bits) if bits==8 else None
    if sc is None: break
    for mode in ('all','none','inputs','weights','weights per pixel','inputs and weights per pixel'):
        r=compare_outputs(val,exp,outputs_of(host_graph(variant(g,sc,mode,ds)),val,'auto',quiet,''))
        print(which,bits,f'{mode:30}',r.correct,r.changed,round(r.distance,5),f"{r.relative_l2:.3e}",flush=True)
