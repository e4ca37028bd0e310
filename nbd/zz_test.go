package nbd
import ("net";"testing";"time")
func TestZZ(t *testing.T){
 l,_:=net.Listen("tcp","127.0.0.1:0"); defer l.Close()
 c,_:=net.Dial("tcp",l.Addr().String()); s,_:=l.Accept()
 b:=newBudget(MinTotalBufferBytes,MinTotalBufferBytes,time.Minute); a:=b.open(s)
 done:=make(chan error); go func(){_,err:=a.Write(make([]byte,32<<20)); done<-err}()
 time.Sleep(200*time.Millisecond)
 p:=make([]byte,64<<10)
 for i:=0;i<12;i++{ c.Read(p); b.mu.Lock(); a.nudge(); b.mu.Unlock(); time.Sleep(50*time.Millisecond); t.Log(a.moved.Load()) }
 go func(){ q:=make([]byte,1<<20); for { if _,e:=c.Read(q);e!=nil {return} } }()
 if err:=<-done; err!=nil||a.moved.Load()!=32<<20 {t.Fatal(err)}
 c.Close()
}
