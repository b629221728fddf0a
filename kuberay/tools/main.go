// Command tools renders Kustomize overlays and checks what comes out as strictly as a cluster would: unknown fields,
// Kubernetes' own validation of core objects, the KubeRay CRDs, the operator's own rules, and of every pod, as the
// operator would make it, Kubernetes' validation and the "restricted" Pod Security Standard.
//
//	tools [-crds DIR_OR_GLOB ...] OVERLAY...
//
// It prints JSON: {"overlays": {DIR: {"objects": [...], "pods": [...]}}, "findings": ["DIR: KIND/NAME: ..."]}, and
// exits 1 where there are findings, 2 where it could not do its work. It asks no cluster and no network.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

type overlay struct {
	Objects []map[string]any `json:"objects"`
	Pods    []*corev1.Pod    `json:"pods"`
}

type result struct {
	Overlays map[string]*overlay `json:"overlays"`
	Findings []string            `json:"findings"`
}

type globs []string

func (g *globs) String() string     { return fmt.Sprint(*g) }
func (g *globs) Set(s string) error { *g = append(*g, s); return nil }

func main() {
	var places globs
	flag.Var(&places, "crds", "glob of CRD files, .yaml or .yaml.gz; may be repeated")
	flag.Parse()
	found, err := run(flag.Args(), places)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if len(found.Findings) > 0 {
		os.Exit(1)
	}
}

func run(dirs []string, places []string) (*result, error) {
	crds, err := readCRDs(places)
	if err != nil {
		return nil, err
	}
	found := &result{Overlays: map[string]*overlay{}, Findings: []string{}}
	for _, dir := range dirs {
		one := &overlay{Objects: []map[string]any{}, Pods: []*corev1.Pod{}}
		found.Overlays[dir] = one
		// With kubectl's own options, which load no file from above an overlay's folder: `kubectl apply -k` has no flag to.
		rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
		if err != nil {
			found.Findings = append(found.Findings, fmt.Sprintf("%s: %v", dir, err))
			continue
		}
		for _, resource := range rendered.Resources() {
			text, err := resource.MarshalJSON()
			if err != nil {
				return nil, err
			}
			var object map[string]any
			if err := json.Unmarshal(text, &object); err != nil {
				return nil, err
			}
			one.Objects = append(one.Objects, object)
			pods, findings := check(text, object, crds)
			one.Pods = append(one.Pods, pods...)
			for _, finding := range findings {
				found.Findings = append(found.Findings,
					fmt.Sprintf("%s: %s/%s: %s", dir, resource.GetKind(), resource.GetName(), finding))
			}
		}
	}
	sort.Strings(found.Findings)
	return found, nil
}
